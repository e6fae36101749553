"""Short ways to learned policies of the usual kinds."""

from indis import LearnedPolicy


def shared(base, schedule, bounds, order=0):
    """One plan for all samples."""
    return LearnedPolicy(base, schedule, bounds, order=order)


def per_sample(count, base, schedule, bounds, order=0):
    """A plan of its own for each of so many samples."""
    return LearnedPolicy(base, schedule, bounds, order=order, samples=count)


def phi(base, schedule, bounds, **network):
    """A plan as a function of noise and condition."""
    return LearnedPolicy(base, schedule, bounds, reads="noise", **network)


def closed(base, schedule, bounds, **network):
    """A plan that reads answers."""
    return LearnedPolicy(base, schedule, bounds, reads="answers", **network)
