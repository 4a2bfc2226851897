"""Publishing on the Hugging Face Hub: students in repositories, and demos of them as Spaces."""
