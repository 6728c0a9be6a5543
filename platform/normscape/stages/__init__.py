"""Stages: what each step of an experiment reads, runs and writes, and their order."""
