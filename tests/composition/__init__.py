"""The backend together with what else is done to a model: adapters, quantisation, offloading, ControlNets, parallelism."""
