package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"strings"
	"testing"
	"time"
)

// TestIndexCheck: files that bbolt would follow into an endless recursion, or
// scan in a goroutine that panics, are refused; whole ones are not.
func TestIndexCheck(t *testing.T) {
	dir := t.TempDir()
	x := openIndex(t, dir, &strings.Builder{})
	for round := range 5 {
		for i := range 500 {
			x.put(fmt.Sprint("bucket", i%3), fmt.Sprint(round, "-", i), time.Now(), make([]byte, i*round))
		}
		x.Flush()
		for i := range 100 {
			x.del("bucket1", fmt.Sprint(round, "-", i))
		}
		x.Flush()
		if err := checkBolt(indexFile(t, dir, 0)); err != nil {
			t.Fatal("a whole file:", err)
		}
	}
	x.Close()
	path := indexFile(t, dir, 0)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	refuse := func(what string, damage func(data []byte)) {
		data := append([]byte{}, whole...)
		damage(data)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkBolt(path); !errors.Is(err, errDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	branches := 0
	for at := 2 * page; at < len(whole); at += page {
		id := binary.NativeEndian.Uint64(whole[at:])
		if id != uint64(at/page) || binary.NativeEndian.Uint16(whole[at+8:]) != boltBranch {
			continue
		}
		data := append([]byte{}, whole...)
		binary.NativeEndian.PutUint64(data[at+boltHeader+8:], 2)
		os.WriteFile(path, data, 0o600)
		if checkBolt(path) == nil {
			continue // a page that is free
		}
		branches++
		refuse("a branch that is its own child", func(data []byte) {
			binary.NativeEndian.PutUint64(data[at+boltHeader+8:], id)
		})
	}
	if branches == 0 {
		t.Error("the file has no branch pages: this test shows nothing")
	}
	refuse("no free list", func(data []byte) {
		for i := range 2 {
			meta := data[i*page+boltHeader : i*page+boltHeader+boltMetaSize]
			binary.NativeEndian.PutUint64(meta[32:], boltNoFreelist)
			h := fnv.New64a()
			h.Write(meta[:boltMetaSize-8])
			binary.NativeEndian.PutUint64(meta[boltMetaSize-8:], h.Sum64())
		}
	})
	refuse("a short file", func(data []byte) { clear(data[:2*page]) })
}
