"""AI in marketing, reproducible: data contracts, methods, trust, decisions and the pipeline that runs them."""

__version__ = "0.1.0"
