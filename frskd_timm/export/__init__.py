"""A trained student to a folder, and back: what timm, transformers and the Hub load, proven by loading it."""
