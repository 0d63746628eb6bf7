"""The images in the registry: what is there, whether it is whole, and what nodes ask for in vain."""
