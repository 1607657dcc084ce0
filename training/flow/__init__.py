"""Training of the flow head: structure VAE, flow matching, shortcut, and its form of both event stages."""
