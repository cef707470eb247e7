"""The estimator against what was published and against llama.cpp's dry run.

python -m eval.memory [--truth FOLDER] [--out FOLDER] [--no-grid]
"""
