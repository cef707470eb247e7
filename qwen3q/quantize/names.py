"""Names of the files beside an artefact's shards, and of what a run keeps until its end."""

from __future__ import annotations

CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
REPORT_NAME = "report.json"
MANIFEST_NAME = "manifest.json"
GPTQ_CONFIG_NAME = "quantize_config.json"
NOT_CHECKSUMMED = (REPORT_NAME, CARD_NAME)
"""The report holds seconds; the card is for people, and evaluations add to it."""
IMPORTANCE_PREFIX = ".importance-"
