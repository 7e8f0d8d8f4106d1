"""A transformer in an asynchronous pipeline: what `shakespeare.py` trains, keeps and draws."""
