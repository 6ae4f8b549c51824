"""Steps 1 to 5 of the way of a batch on the driver's side: rollout, baseline, mini-batches, advantages."""
