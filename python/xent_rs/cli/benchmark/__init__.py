"""What ``xent-rs bench`` does: this package against its peers.

============= =============================================================================================
`cases`       a problem: logits, targets, the float64 answer, the roofs of its memory
`contenders`  this package and its peers
`peers`       the comparison
`measuring`   check the answers, then time the calls in turns
`timing`      take turns
`reference`   the formulas in float64, and as one writes them in NumPy
`tables`      results for people
`plot`        a picture
============= =============================================================================================

What else is measured, for those who work on this package, is in ``benches/`` of its repository.
"""
