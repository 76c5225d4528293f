"""The engines that run a bundle's networks, behind one protocol (base.py); each is imported on use."""
