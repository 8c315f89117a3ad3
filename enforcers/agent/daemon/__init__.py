"""What runs on a host or on the router: applies a rule set, watches connection tracking and the log, answers commands.

Standard library only (Python 3.11). Shipped as a zipapp by the Deployment's files; nothing else of the project is on
the host, so nothing here imports it.
"""
