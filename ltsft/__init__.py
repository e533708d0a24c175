"""Sparse fine-tuning of multilingual encoders: learn, store, compose and measure SFTs."""
