"""What Adam (Kingma and Ba 2015) is told, of the field and of everything that is learned with it."""

BETA1, BETA2 = 0.9, 0.99
EPSILON = 1e-15  # a rare cell's gradient is tiny and must count all the same
