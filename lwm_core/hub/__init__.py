"""The Hugging Face Hub: what a model is called there, which of its files are fetched, and how."""
