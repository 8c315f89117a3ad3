"""Kernel programs written in C: compiled at first use, kept by the digest of their source."""
