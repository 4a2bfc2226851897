"""What a finished run leaves behind: metrics, pictures, the model card, other formats, a repository on the Hub."""
