"""Programs around vocabularies: train one from plain text; run without torch and transformers (see README.md)."""
