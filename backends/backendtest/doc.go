// Package backendtest says by tests what package backends says in words.
//
//   - Run is the conformance suite: a backend is done when it passes.
//   - Faulty makes a backend fail by an ordered script.
//   - Counting counts what a backend is asked.
//
// Only tests import it.
package backendtest
