"""All that knows the insides of DeepSpeed 0.19; the rest of the engine sees an engine that trains.

``wrap`` makes the engine. ``settings`` is the dictionary that it takes. ``half_stage0`` is what it
leaves undone at stage 0. ``masters`` finds the exact weights.
"""
