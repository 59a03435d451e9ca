"""At most so many pairs a query, by counting and one seeded draw per pair.

The paper keeps up to 20,000 pairs per query (Radford et al. 2021, section 2.2). MetaCLIP (Xu et al.
2024) does it by draws: a query of c pairs takes each of them with the chance p = min(1, t / c), and
a pair stays where one of its queries takes it.
"""
