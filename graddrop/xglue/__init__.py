"""Fine-tuning on the XGLUE benchmark, from the files of the archive to a table of scores.

Nothing is imported here, so that `import graddrop` needs neither transformers nor datasets.
"""
