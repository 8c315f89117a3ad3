"""What runs on a host: loads the kernel programs, names executables, takes telemetry in, answers commands.

Standard library only (Python 3.11). Shipped as a zipapp by the Deployment's files, so nothing here imports the project.
"""
