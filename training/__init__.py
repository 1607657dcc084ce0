"""Offline training: pretraining of the RGB network, distillation of the event encoder, fusion."""
