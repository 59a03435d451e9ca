"""What is wrong with this machine, launcher and flags, before a run is.

    python -m clipfast.doctor
    deepspeed --num_gpus 8 --module clipfast.doctor --model.name ViT-B/32 --batch-size 8192
    torchrun --nproc-per-node 8 -m clipfast.doctor --json doctor.json

Every check is a file of ``clipfast.doctor.checks``. Each rank looks (``look``), rank 0 judges what
all ranks have seen (``judge``), and what it finds comes with a remedy.
"""
