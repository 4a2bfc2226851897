"""Export trained students to folders that timm, transformers and the Hub can load, and load them again."""
