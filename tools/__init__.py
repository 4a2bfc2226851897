"""Commands for maintainers: shipping weights, tables of the zoo, the sample, official splits."""
