"""Words of texts, and which queries stand in them."""
