"""Measurements that no learner needs, and the recipe of the small teacher."""
