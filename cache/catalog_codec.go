package cache

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// codecVersion starts every encoded value; another one is not read.
const codecVersion = 1

var errCodec = errors.New("not in a form this program writes")

// encoder appends values in a compact form that decoder reads back.
type encoder struct{ b []byte }

func newEncoder() *encoder { return &encoder{b: []byte{codecVersion}} }

func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }

func (e *encoder) bool(v bool) {
	if v {
		e.b = append(e.b, 1)
	} else {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) string(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) time(t time.Time) {
	e.bool(!t.IsZero())
	if !t.IsZero() {
		e.int(t.Unix())
		e.uint(uint64(t.Nanosecond()))
	}
}

func (e *encoder) ref(r backends.Ref) {
	e.string(r.Collection)
	e.string(r.Image)
	e.string(r.Tag)
}

func (e *encoder) digest(d backends.Digest) {
	e.string(d.Algorithm)
	e.string(d.Hex)
}

func (e *encoder) words(m map[string]string) {
	e.uint(uint64(len(m)))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		e.string(k)
		e.string(m[k])
	}
}

func (e *encoder) record(r backends.Record) {
	e.ref(r.Ref)
	e.string(r.Version)
	e.string(r.Word)
	e.digest(r.Digest)
	e.int(r.Size)
	e.time(r.Created)
	e.bool(r.Frozen)
	e.words(r.Labels)
	e.words(r.Attributes)
	e.string(r.URL)
	e.bool(r.Full)
}

// decoder reads what encoder wrote. After the first mistake err is set and
// everything reads as zero. Strings share the memory of the whole.
type decoder struct {
	s   string
	err error
}

func newDecoder(b []byte) *decoder {
	d := &decoder{s: string(b)}
	if len(b) == 0 || b[0] != codecVersion {
		d.fail()
		return d
	}
	d.s = d.s[1:]
	return d
}

func (d *decoder) fail() { d.s, d.err = "", errCodec }

func (d *decoder) uint() uint64 {
	var v uint64
	for i := range min(len(d.s), binary.MaxVarintLen64) {
		c := d.s[i]
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			d.s = d.s[i+1:]
			return v
		}
	}
	d.fail()
	return 0
}

func (d *decoder) int() int64 {
	u := d.uint()
	return int64(u>>1) ^ -int64(u&1)
}

func (d *decoder) bool() bool { return d.uint() == 1 }

func (d *decoder) string() string {
	n := d.uint()
	if n > uint64(len(d.s)) {
		d.fail()
		return ""
	}
	s := d.s[:n]
	d.s = d.s[n:]
	return s
}

func (d *decoder) time() time.Time {
	if !d.bool() {
		return time.Time{}
	}
	sec := d.int()
	return time.Unix(sec, int64(d.uint())).UTC()
}

func (d *decoder) ref() backends.Ref {
	return backends.Ref{Collection: d.string(), Image: d.string(), Tag: d.string()}
}

func (d *decoder) digest() backends.Digest {
	return backends.Digest{Algorithm: d.string(), Hex: d.string()}
}

// count reads how many items follow, each at least one byte.
func (d *decoder) count() int {
	n := d.uint()
	if n > uint64(len(d.s)) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) words() map[string]string {
	n := d.count()
	if n == 0 {
		return nil
	}
	m := make(map[string]string, n)
	for range n {
		k := d.string()
		m[k] = d.string()
	}
	return m
}

func (d *decoder) record() backends.Record {
	return backends.Record{
		Ref:        d.ref(),
		Version:    d.string(),
		Word:       d.string(),
		Digest:     d.digest(),
		Size:       d.int(),
		Created:    d.time(),
		Frozen:     d.bool(),
		Labels:     d.words(),
		Attributes: d.words(),
		URL:        d.string(),
		Full:       d.bool(),
	}
}
