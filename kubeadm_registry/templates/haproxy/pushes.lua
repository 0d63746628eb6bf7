-- While pushes are closed (see pushes.map), what belongs to one waits until they are open. Clients that push wait for an
-- answer as long as it takes, and few try again after a 503.
local LONGEST, STEP = 300, 100

-- The very entries that the runtime socket changes: HAProxy keeps one list for each file.
local closed = Map.new("{{ map }}", Map._str)

core.register_action("hold_push", {"http-req"}, function(txn)
  local ends = core.now().sec + LONGEST
  while true do
    -- The map has the time of the wall clock, which core.now() does not follow where that is set.
    if core.now().sec >= ends or os.time() >= (tonumber(closed:lookup("closed")) or 0) then
      return
    end
    core.msleep(STEP)
  end
end)
