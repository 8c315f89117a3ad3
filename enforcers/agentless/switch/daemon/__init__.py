"""The daemon of the virtual switch: loads the program, attaches ports, changes policies, keeps telemetry.

Runs at the switch, in one file with what it needs of lab.bpf; standard library only.
"""
