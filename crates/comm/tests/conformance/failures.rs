//! What ranks say when one of them dies, stops, aborts, leaves or does something else.
