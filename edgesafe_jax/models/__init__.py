"""A frozen language model: decoder, loading, tokenization, generation."""
