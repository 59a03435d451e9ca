"""Where queries come from: words and bigrams of a text, titles of articles, WordNet.

The paper's list has 500,000 (Radford et al. 2021, section 2.2): all words that occur at least 100
times in the English Wikipedia, pairs of words with high pointwise mutual information, titles of
articles above some number of views, and all WordNet synsets that are not there yet.
"""
