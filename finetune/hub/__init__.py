"""Results on the Hugging Face hub: what is uploaded, and the card that says what it is."""
