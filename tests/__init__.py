"""The tests of xent_rs; helpers are imported relatively (`from .oracle import Softmax`)."""
