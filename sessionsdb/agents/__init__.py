"""Agents of models and frameworks as handlers of a worker. One module each, each with an extra."""
