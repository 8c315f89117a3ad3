"""The switch firewall on Open vSwitch: flow tables (flows.py) and what puts them in force at the switch (point.py)."""
