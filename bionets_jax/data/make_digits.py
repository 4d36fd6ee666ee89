"""Writes digits.npz from scikit-learn's copy of the UCI optdigits test set.

  python -m bionets_jax.data.make_digits

Needed once, by whoever changes the file; the result is part of the package. The data are
E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0.
"""

import pathlib

import numpy as np


def main():
  from sklearn.datasets import load_digits

  digits = load_digits()
  path = pathlib.Path(__file__).with_name("digits.npz")
  np.savez_compressed(
      path,
      images=digits.images.astype(np.uint8),  # (1797, 8, 8), grey values 0..16
      labels=digits.target.astype(np.uint8),
  )
  print(f"wrote {path}, {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
