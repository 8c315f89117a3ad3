"""agent-ebpf: what its kernel tables hold (pure), and what its agent does on a host."""
