//! Storage: the dataset that holds a database.
