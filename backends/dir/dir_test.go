package dir_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/backendtest"
	"github.com/sregistry/sregistry-fs/backends/dir"
	"github.com/sregistry/sregistry-fs/secrets"
)

func dial(t testing.TB, path string) backends.Set {
	t.Helper()
	b, err := dir.Driver().Dial(t.Context(), backends.Config{
		Location: path,
		Settings: secrets.Fixed("dir", nil),
		Log:      slog.New(slog.DiscardHandler),
		Now:      time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return backends.Probe(b)
}

func TestConformance(t *testing.T) {
	backendtest.Run(t, backendtest.Harness{
		New: func(t testing.TB) backendtest.Store {
			folder := t.TempDir()
			file := func(ref backends.Ref) string { return filepath.Join(folder, ref.Collection, ref.FileName()) }
			var seeds atomic.Int64
			return backendtest.Store{
				Backend: dial(t, folder).Backend,
				Seed: func(ref backends.Ref, data []byte) error {
					aside := filepath.Join(folder, ".seed-"+strconv.FormatInt(seeds.Add(1), 10))
					if err := os.MkdirAll(filepath.Dir(file(ref)), 0o755); err != nil {
						return err
					}
					if err := os.WriteFile(aside, data, 0o644); err != nil {
						return err
					}
					return os.Rename(aside, file(ref))
				},
				Remove: func(ref backends.Ref) error { return os.Remove(file(ref)) },
				Freeze: func(ref backends.Ref) error { return os.Chmod(file(ref), 0o444) },
				Reopen: func(t testing.TB) backends.Backend { return dial(t, folder).Backend },
			}
		},
	})
}
