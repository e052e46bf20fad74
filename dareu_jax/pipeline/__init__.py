"""The experiment: settings, data, models, the graph of stages, the folder that it leaves."""
