"""What a run will need, before there is a machine for it: memory, time, data, bytes on the wire.

    python -m clipfast.plan recipes/rn50x64.py --gpus 592 --gpu v100-32gb

Everything that can be counted is counted on the recipe's own modules, without their memory, and on
the run's own decisions (``clipfast.engine.plan.decide``). What cannot is stated: the share of a
card's peak that the model reaches, and the speed of links.
"""
