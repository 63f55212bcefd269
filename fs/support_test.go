package fs_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"iter"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// waitFor polls until ok holds, for ten seconds.
func waitFor(t testing.TB, ok func() bool, explain ...func() string) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, e := range explain {
		t.Error(e())
	}
	t.Fatal("it did not happen in ten seconds")
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// checkBlobs reads every verified blob and compares it with its name.
func checkBlobs(t testing.TB, store string) {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(store, "blobs", "sha256", "*"))
	if err != nil || len(blobs) == 0 {
		t.Fatalf("no blobs in %s: %v", store, err)
	}
	for _, path := range blobs {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if digestOf(data) != filepath.Base(path) {
			t.Errorf("the verified blob %s was changed", path)
		}
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// offline is a registry that cannot be reached.
func offline(s backends.Set) backends.Set {
	down := backends.Errorf("dial", backends.Ref{}, backends.Unavailable, "connection refused")
	d := deadBackend{err: down}
	return backends.Set{Backend: d, Ranges: d, Pusher: s.Pusher, Deleter: s.Deleter}
}

type deadBackend struct{ err error }

func (d deadBackend) Collections(context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) { yield("", d.err) }
}

func (d deadBackend) Images(context.Context, string) iter.Seq2[backends.Record, error] {
	return func(yield func(backends.Record, error) bool) { yield(backends.Record{}, d.err) }
}

func (d deadBackend) Stat(context.Context, backends.Ref) (backends.Record, error) {
	return backends.Record{}, d.err
}

func (d deadBackend) Open(context.Context, backends.Record) (*backends.Stream, error) {
	return nil, d.err
}

func (d deadBackend) OpenRange(context.Context, backends.Record, int64, int64) (*backends.Stream, error) {
	return nil, d.err
}

func (d deadBackend) Close() error { return nil }

func recRef(f *fixture) backends.Ref {
	return backends.Ref{Collection: "vsoch", Image: "hello", Tag: "latest"}
}
