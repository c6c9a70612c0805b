"""One fine-tuning run, and the folder that it leaves."""
