package fs_test

import (
	"os"
	"testing"

	"github.com/sregistry/sregistry-fs/backends/mem"
)

// TestModesOnOneInode opens one inode cold and warm in every order: passthrough and
// page cache must never meet on it, or the kernel answers EIO.
func TestModesOnOneInode(t *testing.T) {
	data := random(3_000_000)
	for _, o := range []mem.Options{{}, {NoRanges: true}} {
		f := newFixture(t, o)
		f.put("vsoch/hello:latest", data)
		path := f.path("vsoch/hello:latest.simg")
		var open []*os.File
		check := func(step string) {
			t.Helper()
			buf := make([]byte, 10_000)
			for i, file := range open {
				if _, err := file.ReadAt(buf, int64(i)*100_000); err != nil {
					t.Fatalf("%s: handle %d: %v", step, i, err)
				}
			}
		}
		more := func() {
			t.Helper()
			file, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, file)
		}
		more() // cold: through the page cache
		check("cold")
		sameFile(t, path, data)
		waitFor(t, func() bool {
			rec, err := f.cache.Catalog.Find(t.Context(), recRef(f))
			if err != nil {
				return false
			}
			_, _, ok := f.cache.Store.Cached(rec)
			return ok
		})
		more() // warm, while the cold handle is open
		check("warm beside cold")
		for _, file := range open {
			file.Close()
		}
		open = nil
		more() // warm alone
		more()
		check("warm")
		open[0].Close()
		open = open[1:]
		more()
		check("warm again")
		for _, file := range open {
			file.Close()
		}
		open = nil
		for range 20 {
			more()
			check("many")
		}
		for _, file := range open {
			file.Close()
		}
	}
}
