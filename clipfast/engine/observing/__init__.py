"""What a run knows of its own steps: where their time goes and what memory they take.

``observer`` takes the steps. ``phases`` tells it where a step is. ``parts``, ``usage`` and
``rates`` measure. The step itself knows nothing of them.
"""
