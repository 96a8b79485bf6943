// Go's smux over the link: `peer client|server VERSION PLAN`, told and heard as end.ts, with its own default options.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xtaci/smux"
)

const (
	slack       = 300 * time.Millisecond
	sampleEvery = 10 * time.Millisecond
	writeSize   = 64 * 1024
	period      = 262147
	step        = 2617
)

type plan struct {
	Sender  string
	Streams int
	Time    int
	Port    int
}

func (p plan) time() time.Duration { return time.Duration(p.Time) * time.Millisecond }

var pattern [period + writeSize]byte

func fillPattern() {
	word := uint32(1)
	for at := 0; at < period; at++ {
		word = word*1664525 + 1013904223
		pattern[at] = byte(word >> 24)
	}
	copy(pattern[period:], pattern[:])
}

// expected gives the bytes that belong at this position of stream n.
func expected(n int, position int64, count int) []byte {
	start := (int64(n)*step + position) % period
	return pattern[start : start+int64(count)]
}

// each runs work once for every stream at the same time.
func each(streams []*smux.Stream, work func(n int, s *smux.Stream)) {
	var all sync.WaitGroup
	for n, s := range streams {
		all.Add(1)
		go func(n int, s *smux.Stream) {
			defer all.Done()
			work(n, s)
		}(n, s)
	}
	all.Wait()
}

func send(streams []*smux.Stream, p plan) result {
	var total int64
	end := time.Now().Add(p.time() + slack)
	each(streams, func(n int, s *smux.Stream) {
		var sent int64
		for time.Now().Before(end) {
			count, err := s.Write(expected(n, sent, writeSize))
			check(err)
			sent += int64(count)
		}
		atomic.AddInt64(&total, sent)
		check(s.Close())
	})
	return result{"bytes": total}
}

func drain(streams []*smux.Stream, p plan) result {
	var total int64
	var begin sync.Once
	samples := make(chan [][2]float64, 1)
	sample := func() {
		taken := [][2]float64{{0, float64(atomic.LoadInt64(&total))}}
		start := time.Now()
		for range time.Tick(sampleEvery) {
			elapsed := time.Since(start)
			taken = append(taken, [2]float64{elapsed.Seconds() * 1000, float64(atomic.LoadInt64(&total))})
			if elapsed >= p.time() {
				break
			}
		}
		samples <- taken
	}
	each(streams, func(n int, s *smux.Stream) {
		b := make([]byte, writeSize)
		for position := int64(0); ; {
			count, err := s.Read(b)
			if err == io.EOF {
				return
			}
			check(err)
			if !bytes.Equal(b[:count], expected(n, position, count)) {
				check(fmt.Errorf("stream %d carried wrong data after %d bytes", n, position))
			}
			position += int64(count)
			atomic.AddInt64(&total, int64(count))
			begin.Do(func() { go sample() })
		}
	})
	return result{"bytes": total, "samples": <-samples}
}

func connect(role string, config *smux.Config, p plan) (streams []*smux.Stream) {
	if role == "client" {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.Port))
		check(err)
		session, err := smux.Client(conn, config)
		check(err)
		for len(streams) < p.Streams {
			s, err := session.OpenStream()
			check(err)
			streams = append(streams, s)
		}
		return streams
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	conn, err := listener.Accept()
	check(err)
	session, err := smux.Server(conn, config)
	check(err)
	for len(streams) < p.Streams {
		s, err := session.AcceptStream()
		check(err)
		streams = append(streams, s)
	}
	return streams
}

func main() {
	endWithInput()
	fillPattern()
	config := smux.DefaultConfig()
	version, err := strconv.Atoi(os.Args[2])
	check(err)
	config.Version = version
	var p plan
	check(json.Unmarshal([]byte(os.Args[3]), &p))
	streams := connect(os.Args[1], config, p)
	if os.Args[1] == p.Sender {
		say(send(streams, p))
	} else {
		say(drain(streams, p))
	}
	select {}
}
