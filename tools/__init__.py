"""Commands for maintainers: datasets and ImageNet weights to create, students to ship, tables of the zoo, the site."""
